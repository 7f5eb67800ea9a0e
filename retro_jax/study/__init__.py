"""Studies: many runs of one experiment, prepared once; what they say together."""
