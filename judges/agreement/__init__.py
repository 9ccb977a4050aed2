"""How far a judge agrees with people: votes in, one object of figures out, each with its rule and its n."""
