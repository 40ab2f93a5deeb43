"""PEFT methods of the zoo, laid out like peft's own: config, layer and model per method."""
