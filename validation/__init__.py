"""The package against exact answers and real molecules: `make validate` writes docs/validation.md."""
