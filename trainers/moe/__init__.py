"""Mixture-of-experts: router losses, their schedule, upcycling of dense models, and a look at the routing."""
