"""The verbs that methods are written in. Nothing here knows a library of networks."""
