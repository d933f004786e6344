"""Where and in what portions instances are computed: everything that never changes a value."""

from jax.sharding import Mesh

from nvcim_jax import checks

__all__ = ["CHOSEN", "MAPPINGS", "Placement"]

MAPPINGS = ("auto", "loop", "vmap")


@checks.frozen_config
class Placement:
    """Where and in what portions instances are computed.

    Attributes:
        chunk: Instances that a device holds in one call; None chooses from the memory budget.
        mapping: "loop", "vmap", or "auto": a loop on a CPU, vmap elsewhere.
        mesh: Mesh with an axis "instance" to spread the instances over; None is the one device of the key.
        memory_budget_mb: MiB that one call may take on a device beyond the arguments (temporaries and outputs), held
            against the compiler's own analysis.

    Raises:
        ValueError: If one is wrong; the message names it, what it must be, and the fix.

    Example:
        >>> Placement(chunk=64, mapping="vmap").memory_budget_mb
        1024.0
    """

    chunk: int | None = None
    mapping: str = "auto"
    mesh: Mesh | None = None
    memory_budget_mb: float = 1024.0

    def __post_init__(self) -> None:
        if self.chunk is not None:
            checks.integer("chunk", self.chunk, fix="Use None to have it chosen from the memory budget.")
        checks.choice("mapping", self.mapping, MAPPINGS)
        checks.number("memory_budget_mb", self.memory_budget_mb, low=0.0, low_open=True, unit="MiB")
        mesh = self.mesh
        if mesh is not None and (not isinstance(mesh, Mesh) or "instance" not in mesh.axis_names):
            found = f"has axes {mesh.axis_names}" if isinstance(mesh, Mesh) else f"is {type(mesh).__name__}"
            checks.fail("mesh", 'have an axis "instance"', found, "Make it with montecarlo.instance_mesh().")


CHOSEN = Placement()
"""Everything chosen from the platform and the memory budget."""
