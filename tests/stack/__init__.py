"""What only tests need of the harness: fixtures, errors as a caller sees them, messages as bytes."""
