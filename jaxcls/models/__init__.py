"""Networks: pure layers, the linen modules that own their parameters, and the table of names."""
