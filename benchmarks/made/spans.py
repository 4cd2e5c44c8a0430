"""Spans of requests, as OTLP JSON and protobuf have them."""

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

T0 = 1_795_528_740_000_000_000
CANARY = "canary-prompt-2718"


def value(item):
    kind = {str: "stringValue", int: "intValue", float: "doubleValue"}[type(item)]
    return {kind: str(item) if kind == "intValue" else item}


def span(number, *, parent="", trace="aa", start=0.0, took=2.0, name="llm_request", **values):
    """An OTLP JSON span; `values` are attributes with dots written as two underscores."""
    defaults = {
        "gen_ai__latency__time_to_first_token": 0.5,
        "gen_ai__latency__time_in_model_prefill": 0.25,
        "gen_ai__latency__e2e": took,
        "gen_ai__usage__prompt_tokens": 136,
        "gen_ai__usage__completion_tokens": 48,
        "gen_ai__request__id": f"cmpl-{number}",
    }
    chosen = (defaults if name == "llm_request" else {}) | values
    return {
        "traceId": trace * 16,
        "spanId": f"{number:016x}",
        "parentSpanId": parent and f"{parent:016x}",
        "name": name,
        "startTimeUnixNano": str(T0 + int(start * 1e9)),
        "endTimeUnixNano": str(T0 + int((start + took) * 1e9)),
        "attributes": [
            {"key": key.replace("__", "."), "value": value(item)} for key, item in chosen.items()
        ],
    }


def client(number, *, parent, **more):
    operation = {"gen_ai__operation__name": "chat", "gen_ai__prompt": CANARY}
    return span(number, parent=parent, name="chat demo", **operation, **more)


def request(*spans, service="vllm", **process):
    told = {"service.name": service} | {
        key.replace("__", "."): each for key, each in process.items()
    }
    resource = {"attributes": [{"key": key, "value": value(each)} for key, each in told.items()]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


def as_protobuf(document):
    message = ExportTraceServiceRequest()
    for part in document["resourceSpans"]:
        mine = message.resource_spans.add()
        for each in part["resource"]["attributes"]:
            mine.resource.attributes.add(key=each["key"]).value.string_value = each["value"][
                "stringValue"
            ]
        scope = mine.scope_spans.add()
        for each in part["scopeSpans"][0]["spans"]:
            made = scope.spans.add(
                trace_id=bytes.fromhex(each["traceId"]),
                span_id=bytes.fromhex(each["spanId"]),
                parent_span_id=bytes.fromhex(each["parentSpanId"]),
                name=each["name"],
                start_time_unix_nano=int(each["startTimeUnixNano"]),
                end_time_unix_nano=int(each["endTimeUnixNano"]),
            )
            for attribute in each["attributes"]:
                ((kind, item),) = attribute["value"].items()
                target = made.attributes.add(key=attribute["key"]).value
                if kind == "intValue":
                    target.int_value = int(item)
                elif kind == "doubleValue":
                    target.double_value = item
                else:
                    target.string_value = item
    return message.SerializeToString()
