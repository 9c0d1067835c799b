"""One update of a real deployment: from its files to a page of pictures. `experiments.attack_update` is its command."""
