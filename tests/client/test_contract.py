"""The contract's code has one home, and the names that clients' scripts import stay."""

import importlib.util
import pickle
from pathlib import Path

import google.rpc
import grpc_tools
from grpc_tools import protoc

from polywand import raster, v1
from polywand.v1 import annotation_pb2, annotation_pb2_grpc
from polywand_contract import raster as contract_raster
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc

ROOT = Path(__file__).parents[2]


def public(module: object) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def test_polywand_v1_has_all_of_the_generated_code_and_no_second_copy() -> None:
    assert public(annotation_pb2) == public(pb)
    assert public(annotation_pb2_grpc) == public(pb_grpc)
    assert annotation_pb2.Prompt is pb.Prompt
    assert annotation_pb2_grpc.AnnotationServiceStub is pb_grpc.AnnotationServiceStub
    assert v1.annotation_pb2 is annotation_pb2


def test_the_descriptor_keeps_the_name_that_any_generated_code_has() -> None:
    assert pb.DESCRIPTOR.name == "polywand/v1/annotation.proto"
    assert pb.DESCRIPTOR.package == "polywand.v1"


def test_code_that_a_user_generated_works_in_the_same_process(tmp_path: Path) -> None:
    googleapis = Path(next(iter(google.rpc.__path__))).parents[1]
    well_known = Path(grpc_tools.__path__[0]) / "_proto"
    folders = [f"-I{folder}" for folder in (ROOT / "proto", googleapis, well_known)]
    assert protoc.main(["protoc", *folders, f"--python_out={tmp_path}", "polywand/v1/annotation.proto"]) == 0
    spec = importlib.util.spec_from_file_location("annotation_pb2", tmp_path / "polywand" / "v1" / "annotation_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    assert generated.Prompt.FromString(pb.Prompt(model="wand").SerializeToString()).model == "wand"


def test_a_message_is_pickled_under_the_contracts_own_module() -> None:
    prompt = pb.Prompt(model="wand", object_id="a")
    pickled = pickle.dumps(prompt)
    assert b"polywand_contract.v1.annotation_pb2" in pickled
    assert pickle.loads(pickled) == prompt


def test_the_sdk_rasterises_with_the_contracts_code() -> None:
    assert raster.encode_rle is contract_raster.encode_rle
    assert raster.decode_rle is contract_raster.decode_rle
