"""How it is measured: workloads, policies, engines and probes."""
