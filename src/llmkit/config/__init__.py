"""The keys: schema, YAML, checks, suggestions and their reference."""
