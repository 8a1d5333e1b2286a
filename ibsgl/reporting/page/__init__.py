"""The report: a static page with the answer, the tables, the figures and every map of a sample of the test images."""
