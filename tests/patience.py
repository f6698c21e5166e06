"""How long tests wait for what must come: a bound is for what never comes, and a machine whose host has taken its processor for a while is only slow."""

PATIENCE_S = 120.0
