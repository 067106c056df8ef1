"""One file per cache policy: which positions of a request run through the network."""
