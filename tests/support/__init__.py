"""What several rooms of tests share: small models, and a count of compilations."""
