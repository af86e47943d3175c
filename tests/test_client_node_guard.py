"""Whatever the client's code makes, only what the documentation names gets past the guard."""

from io import BytesIO

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.task_identity import TaskIdentity

from client.node.guard import guard_reply
from client.node.policy import Policy
from common.errors import PolicyError
from common.wire import CONFIG, Instruction, pack_arrays, pack_sums, unpack_arrays, unpack_sums
from tests.conftest import make_experiment

EXPERIMENT = make_experiment(
    training={"epochs": 2},
    inputs={
        "x": {"kind": "numeric", "columns": ["x*"], "standardise": "federation"},
        "w": {"kind": "categorical", "columns": ["ward"]},
    },
)
TRUNK = {"trunk.w": np.zeros((2, 3), np.float32), "trunk.b": np.ones(2, np.float32)}
SUMS = {
    "train": {"kind": {"loss": [3.0, 20.0]}},
    "test": {"kind": {"loss": [1.0, 4.0], "accuracy": [3.0, 4.0]}},
}
SECRET = b"patient 4711 is ill"


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def message(kind=MessageType.TRAIN) -> Message:
    config = Instruction(EXPERIMENT.model_dump_json(by_alias=True), round=1).to_record()
    content = {CONFIG: config}
    if kind != MessageType.QUERY:
        content["arrays"] = pack_arrays(TRUNK)
    return Message(RecordDict(content), 1, kind)


def trained(**changes) -> dict:
    return {
        "arrays": pack_arrays({name: array + 1 for name, array in TRUNK.items()}),
        "metrics": pack_sums(10, SUMS),
        **changes,
    }


def guard(content, kind=MessageType.TRAIN, **policy) -> RecordDict:
    asked = message(kind)
    reply = Message(RecordDict(content), reply_to=asked)
    return guard_reply(asked, reply, Policy.model_validate(policy), EXPERIMENT).content


def arrays(**changes) -> ArrayRecord:
    return pack_arrays({**TRUNK, **changes})


def test_a_trained_trunk_and_its_sums_pass_unchanged():
    out = guard(trained())
    assert list(out) == ["arrays", "metrics"]
    got = unpack_arrays(out["arrays"])
    assert all(np.array_equal(got[name], TRUNK[name] + 1) for name in TRUNK)
    assert unpack_sums(out["metrics"]) == SUMS
    assert out["metrics"]["num-examples"] == 10


def described(text: str) -> dict:
    return {CONFIG: ConfigRecord({"description": text})}


def test_arrays_leave_in_the_order_of_the_trunk_received_whatever_the_reply_has():
    trained_trunk = {name: TRUNK[name] + 1 for name in reversed(TRUNK)}
    out = unpack_arrays(guard(trained(arrays=pack_arrays(trained_trunk)))["arrays"])
    assert list(out) == list(TRUNK)
    assert all(np.array_equal(out[name], TRUNK[name] + 1) for name in TRUNK)


def test_a_description_passes_as_its_schema_holds_it():
    out = guard(described('{"client": "a", "labelled": {"kind": 3}}'), MessageType.QUERY)
    assert out[CONFIG]["description"] == '{"client":"a","labelled":{"kind":3}}'


SMUGGLED = {
    "another record": trained(extra=ConfigRecord({"rows": SECRET})),
    "another array": trained(arrays=arrays(**{"heads.w": np.ones(1, np.float32)})),
    "one array less": trained(arrays=pack_arrays({"trunk.w": TRUNK["trunk.w"]})),
    "another shape": trained(arrays=arrays(**{"trunk.b": np.ones(3, np.float32)})),
    "another type": trained(arrays=arrays(**{"trunk.b": np.ones(2, np.float64)})),
    "a metric of its own": trained(
        metrics=MetricRecord({**pack_sums(10, SUMS), "train/kind/rows": [4711.0]})
    ),
    "a longer metric": trained(metrics=pack_sums(10, {"train": {"kind": {"loss": [1.0] * 9}}})),
    "a task of its own": trained(metrics=pack_sums(10, {"train": {"patient 4711": {}}} | {
        "test": {"patient 4711": {"loss": [1.0, 2.0]}}})),
    "a name of another form": trained(metrics=MetricRecord({"num-examples": 1, "4711": 1})),
    "no examples": trained(metrics=MetricRecord({"train/kind/loss": [1.0, 2.0]})),
    "numbers that are none": trained(
        metrics=pack_sums(10, {"train": {"kind": {"loss": [float("nan"), 2.0]}}})
    ),
    "no metrics": {"arrays": pack_arrays(TRUNK)},
    "nothing": {},
}  # fmt: skip


@pytest.mark.parametrize("content", SMUGGLED.values(), ids=SMUGGLED)
def test_what_is_no_trained_trunk_with_its_sums_stays(content):
    with pytest.raises(PolicyError) as told:
        guard(content)
    assert SECRET.decode() not in str(told.value)


def test_bytes_behind_an_array_stay():
    buffer = BytesIO()
    np.save(buffer, TRUNK["trunk.b"])
    stuffed = ArrayRecord(dict(pack_arrays(TRUNK)))
    stuffed["trunk.b"] = Array("float32", (2,), "numpy.ndarray", buffer.getvalue() + SECRET)
    out = guard(trained(arrays=stuffed))
    assert SECRET not in b"".join(array.data for array in out["arrays"].values())


def test_an_archive_of_arrays_is_no_array():
    buffer = BytesIO()
    np.savez(buffer, rows=np.ones(2, np.float32))
    archive = ArrayRecord(dict(pack_arrays(TRUNK)))
    archive["trunk.b"] = Array("float32", (2,), "numpy.ndarray", buffer.getvalue())
    with pytest.raises(PolicyError, match=r"trunk.b cannot be read"):
        guard(trained(arrays=archive))


def test_an_array_that_lies_about_its_shape_stays():
    buffer = BytesIO()
    np.save(buffer, np.ones(400, np.float32))
    lying = ArrayRecord(dict(pack_arrays(TRUNK)))
    lying["trunk.b"] = Array("float32", (2,), "numpy.ndarray", buffer.getvalue())
    with pytest.raises(PolicyError, match=r"trunk.b is float32 \(400,\)"):
        guard(trained(arrays=lying))


@pytest.mark.parametrize(
    "content",
    [
        {CONFIG: ConfigRecord({"description": '{"client": "a", "rows": [[1, 2]]}'})},
        {CONFIG: ConfigRecord({"description": '{"client": "a"}', "more": "4711"})},
        {CONFIG: ConfigRecord({"description": "4711"})},
        {**described('{"client": "a"}'), "arrays": pack_arrays(TRUNK)},
        {},
    ],
)
def test_what_is_no_description_stays(content):
    with pytest.raises(PolicyError):
        guard(content, MessageType.QUERY)


STUFFED = {
    "a split": '{"client": "a", "examples": {"patient 4711": 1}}',
    "a task": '{"client": "a", "labelled": {"patient 4711": 1}}',
    "an input": '{"client": "a", "columns": {"patient 4711": ["x1"]}}',
    "a column": '{"client": "a", "columns": {"x": ["x1", "patient 4711"]}}',
    "sums that nobody asks for": '{"client":"a","columns":{"w":["ward"]},'
    '"sums":{"w":{"count":[30],"total":[4711],"squares":[1]}}}',
    "more sums than columns": '{"client":"a","columns":{"x":["x1"]},'
    '"sums":{"x":{"count":[30,30],"total":[1,4711],"squares":[1,1]}}}',
    "categories of a number": '{"client":"a","columns":{"x":["x1"]},'
    '"categories":{"x":{"x1":["patient 4711"]}}}',
    "categories of no column": '{"client":"a","categories":{"w":{"patient 4711":["b"]}}}',
    "a hundred and one categories": '{"client":"a","columns":{"w":["ward"]},'
    f'"categories":{{"w":{{"ward":{[str(i) for i in range(101)]}}}}}}}'.replace("'", '"'),
}


@pytest.mark.parametrize("text", STUFFED.values(), ids=STUFFED)
def test_a_description_tells_only_of_what_the_experiment_asks_for(text):
    with pytest.raises(PolicyError, match="the description has") as told:
        guard(described(text), MessageType.QUERY)
    assert "4711" not in str(told.value)


def test_sums_over_nobody_are_sums_over_no_small_group():
    text = '{"client":"a","columns":{"x":["x1","x2"]},"sums":{"x":{"count":[9.0,0.0],'
    text += '"total":[1.5,0.0],"squares":[2.5,0.0]}}}'
    assert guard(described(text), MessageType.QUERY, leaves={"smallest-group": 5})


def test_sums_and_categories_leave_only_where_allowed():
    sums = described(
        '{"client":"a","columns":{"x":["x1"]},'
        '"sums":{"x":{"count":[3],"total":[1.5],"squares":[2.5]}}}'
    )
    categories = described(
        '{"client":"a","columns":{"w":["ward"]},"categories":{"w":{"ward":["b"]}}}'
    )
    assert guard(sums, MessageType.QUERY, leaves={"allow": ["column-sums"], "smallest-group": 3})
    assert guard(categories, MessageType.QUERY)
    for content, leaves, told in (
        (sums, {"allow": ["trunk"]}, "sums of columns must not leave"),
        (categories, {"allow": ["trunk"]}, "categories must not leave"),
        (sums, {"smallest-group": 4}, "over 3 rows"),
    ):
        with pytest.raises(PolicyError, match=told):
            guard(content, MessageType.QUERY, leaves=leaves)


def test_sums_over_a_small_group_stay_and_the_rest_leaves():
    out = guard(trained(), leaves={"smallest-group": 5})
    assert unpack_sums(out["metrics"]) == {"train": SUMS["train"]}  # 20 over two epochs: 10 rows
    assert not unpack_sums(guard(trained(), leaves={"smallest-group": 11})["metrics"])


def test_kinds_of_sums_that_are_not_allowed_stay():
    out = guard(trained(), leaves={"allow": ["trunk", "evaluation-sums"]})
    assert unpack_sums(out["metrics"]) == {"test": SUMS["test"]}


def test_a_reply_that_is_too_large_stays():
    with pytest.raises(PolicyError, match="most-bytes"):
        guard(trained(), leaves={"most-bytes": 40})


def test_an_evaluation_must_not_bring_a_trunk():
    with pytest.raises(PolicyError, match="and no other"):
        guard(trained(), MessageType.EVALUATE)
    only = {"metrics": pack_sums(10, {"test": SUMS["test"]})}
    assert unpack_sums(guard(only, MessageType.EVALUATE)["metrics"]) == {"test": SUMS["test"]}


def test_a_bundles_own_words_stay_and_those_of_the_installed_code_leave(caplog):
    asked = message()
    reply = Message(Error(code=100, reason=SECRET.decode()), reply_to=asked)
    bundle = Policy.model_validate({"code": {"run": "bundle", "bundles": ["ab" * 32]}})
    assert SECRET.decode() not in guard_reply(asked, reply, bundle, EXPERIMENT).error.reason
    assert guard_reply(asked, reply, Policy(), EXPERIMENT).error.reason == SECRET.decode()
    content = described(f'{{"client": "a", "left_out": "{SECRET.decode()}"}}')
    code = bundle.model_dump()["code"]
    assert (
        SECRET.decode() not in guard(content, MessageType.QUERY, code=code)[CONFIG]["description"]
    )
    assert SECRET.decode() in guard(content, MessageType.QUERY)[CONFIG]["description"]
    with pytest.raises(PolicyError, match="400 characters"):
        guard(described(f'{{"client": "{"x" * 401}"}}'), MessageType.QUERY)


def test_a_reply_to_a_message_of_another_kind_stays():
    asked = Message(RecordDict({CONFIG: ConfigRecord({})}), 1, "query.other")
    reply = Message(RecordDict(trained()), reply_to=asked)
    with pytest.raises(PolicyError, match="none that may leave"):
        guard_reply(asked, reply, Policy(), EXPERIMENT)
