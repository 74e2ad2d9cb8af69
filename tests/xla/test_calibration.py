"""`calibrate`: what it measures, what it keeps, and what it says of files that are not its own."""

import dataclasses
import warnings

import jax.numpy as jnp
import pytest

from tiny_backprop import CalibrationWarning, CostModel, MeasureError, calibrate
from tiny_backprop.integration.jax import read_calibration
from tiny_backprop.integration.jax.xla import calibration
from tiny_backprop.schedule.cost import CLASSES


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    assert read_calibration(folder) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # other tests are running
        return folder, calibrate(cache_directory=folder)


def test_every_class_has_its_speeds(measured):
    _, model = measured
    assert set(model.by_class) == {*CLASSES} - {"other"}
    speeds = {name: flops for name, (flops, _) in model.by_class.items()}
    assert speeds["matmul"] > speeds["special"], "a multiplication of matrices makes more of each second than a sine"
    assert speeds["elementwise"] > speeds["transpose"], "what is fused into a copy in another order is slow"
    assert min(speeds.values()) > 1e6
    assert max(speeds.values()) < 1e15
    assert model.seconds_per_kernel < 1e-3
    assert model.least_fresh_bytes == 32 << 20


def test_it_is_measured_once(measured, monkeypatch):
    folder, model = measured
    monkeypatch.setattr(calibration, "_measured", lambda: pytest.fail("measured again"))
    assert calibrate(cache_directory=folder) == read_calibration(folder) == model
    (file,) = folder.iterdir()
    assert file.suffix == ".json"


def test_it_is_measured_again_where_asked(tmp_path, monkeypatch):
    other = CostModel(flops_per_second=3.0)
    monkeypatch.setattr(calibration, "_measured", lambda: other)
    calibrate(cache_directory=tmp_path)
    changed = dataclasses.replace(other, bytes_per_second=4.0)
    monkeypatch.setattr(calibration, "_measured", lambda: changed)
    assert calibrate(cache_directory=tmp_path) == other
    assert calibrate(again=True, cache_directory=tmp_path) == read_calibration(tmp_path) == changed


@pytest.mark.parametrize("text", ["", "[]", '{"format": "else", "version": 1}', '{"format": "tiny_backprop"}'])
def test_a_damaged_file_is_named_and_can_be_replaced(tmp_path, monkeypatch, text):
    monkeypatch.setattr(calibration, "_measured", CostModel)
    calibrate(cache_directory=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    with pytest.raises(MeasureError, match=r"is no calibration that this version wrote .* calibrate\(again=True\)"):
        calibrate(cache_directory=tmp_path)
    assert calibrate(again=True, cache_directory=tmp_path) == CostModel()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "_measured", CostModel)
    (tmp_path / "file").write_text("")
    with pytest.raises(MeasureError, match=r"the calibration cannot be kept in .*Name another cache_directory"):
        calibrate(cache_directory=tmp_path / "file")


def test_a_busy_machine_is_told_of(monkeypatch):
    speeds = iter([1e11, 4e10])
    monkeypatch.setattr(calibration, "_flops_per_second", lambda *_: next(speeds))
    with pytest.warns(CalibrationWarning, match=r"2\.5 times .* calibrate\(again=True\)"):
        calibration._steadily(lambda: CostModel(), 0.0)


def test_speeds_are_those_of_the_work_that_is_counted(monkeypatch):
    monkeypatch.setattr(calibration, "_seconds", lambda probe: 2.0)
    x = jnp.ones((10, 10))
    assert calibration._flops_per_second([(lambda x: x @ x, (x,))], 1.0) == 2000
    assert calibration._bytes_per_second([(lambda x: (x * x + x).T, (x,))], 1.0) == 800


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for name in ("_measured", "json.dumps"):
        with monkeypatch.context() as patch:
            patch.setattr(calibration, "_measured", CostModel)
            patch.setattr(calibration if name == "_measured" else calibration.json, name.split(".")[-1], interrupted)
            with pytest.raises(KeyboardInterrupt):
                calibrate(cache_directory=tmp_path)
        assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_found_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "_measured", lambda: pytest.fail("measured in vain"))
    (tmp_path / "file").write_text("")
    with pytest.raises(MeasureError, match="the calibration cannot be kept in"):
        calibrate(cache_directory=tmp_path / "file" / "below")
