"""Where ticks come from: one technology a file, all behind `base.Source`."""
