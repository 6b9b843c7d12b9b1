"""The transactive controller (TCR): battery model, bidding curves, forecast, plan."""
