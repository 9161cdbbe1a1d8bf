"""What compression saves in time: models of published shapes with random weights, measured stage by stage."""
