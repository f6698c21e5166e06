"""Models: features, training, registry, evaluation. Imports neither Faust nor stockstream."""
