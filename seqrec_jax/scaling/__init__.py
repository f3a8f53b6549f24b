"""From runs to a scaling law, and from the law to a plan; imports no JAX."""
