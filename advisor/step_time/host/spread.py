from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    requests: float


def evidence_of(system, engine, facts, requests):
    return Evidence(requests)


def learn_spread(*a):
    return {}
