"""A small world of shapes: pictures, statements about them, and the demo model that judges the statements."""
