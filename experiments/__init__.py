"""From a configuration to stored runs, tables and figures. The only room that knows Hydra."""
