"""An experiment from images to metrics, as plain Python: settings, plan, build, train, run."""
