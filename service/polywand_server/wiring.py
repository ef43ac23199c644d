"""Creates and connects the parts of the service; `server` starts and stops them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

from polywand_server.admission.bodies import Admission
from polywand_server.admission.permits import FramePermits
from polywand_server.admission.quotas import Accounts
from polywand_server.admission.turns import Turns
from polywand_server.auth.authenticator import Authenticator
from polywand_server.auth.principals import PrincipalsError
from polywand_server.config import Settings
from polywand_server.detectors.frames import Frames
from polywand_server.detectors.outlines import OutlineMaker
from polywand_server.detectors.proposals import DetectorProposals
from polywand_server.detectors.toolbox import FrameToolbox
from polywand_server.images import ImageStore, Picture
from polywand_server.images.budget import PictureBudget
from polywand_server.images.crop_cache import CropCache
from polywand_server.images.decoder import Decoder
from polywand_server.images.holders import Holders
from polywand_server.images.kept import KeptPictures
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.memory import EstimateMemory, MemoryBudget
from polywand_server.interactors.passes import Passes
from polywand_server.interactors.predictor import Predictor
from polywand_server.interactors.steps import Steps
from polywand_server.interactors.toolbox import InteractorToolbox
from polywand_server.interactors.windowed import Predictors
from polywand_server.lanes import FRAME_PRIORITY, PROMPT_PRIORITY, Lane, ModelTurns, RightOfWay
from polywand_server.ops import metrics
from polywand_server.ops.audit import AuditLog
from polywand_server.ops.health import Health
from polywand_server.rpc.detect import DetectCalls
from polywand_server.rpc.draining import Drains
from polywand_server.rpc.info import ServerInfo
from polywand_server.rpc.ingress import Ingress
from polywand_server.rpc.interact import InteractCalls
from polywand_server.rpc.interceptors import Calls
from polywand_server.rpc.messages import Messages
from polywand_server.rpc.segment import SegmentCalls
from polywand_server.rpc.server import SERVICE_NAME
from polywand_server.rpc.servicer import AnnotationServicer
from polywand_server.session.counts import PromptCounts
from polywand_server.session.outbox import Unread
from polywand_server.session.segments import Segments, SegmentServices
from polywand_server.session.services import Services
from polywand_server.tools.folders import ModelFolders
from polywand_server.tools.loader import ModelLoader
from polywand_server.tools.registry import Registry
from polywand_server.triton.client import DeadProcess, TritonClient
from polywand_server.triton.location import TritonLocation
from polywand_server.triton.shared_memory import SharedMemory, is_on_this_host
from polywand_server.workers.pool import Workers

# Paused frames may hold 1 / PAUSED_FRAMES_PART of the budget of decoded images.
PAUSED_FRAMES_PART = 4


class SettingError(Exception):
    """A file that a setting names is wrong; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that the server runs or passes to its ports."""

    registry: Registry
    health: Health
    ingress: Ingress
    messages: Messages
    servicer: AnnotationServicer
    authenticator: Authenticator
    calls: Calls


def wire(
    stack: AsyncExitStack, settings: Settings, location: TritonLocation, workers: Workers, on_change: Callable[[], None]
) -> Parts:
    """Make all parts between gRPC and Triton. stack: closes them. on_change: called when tools or readiness change.

    Raises SettingError.
    """
    limits, authenticator = settings.limits, _authenticator(settings)
    audit, accounts = _audit(settings), Accounts(authenticator.quotas_of)
    if audit is not None:
        stack.push_async_callback(asyncio.to_thread, audit.close)

    def on_dead_process(report: DeadProcess) -> None:
        loader.revive(report)

    triton = TritonClient(location.url, settings.triton_tls, on_dead_process=on_dead_process)
    stack.push_async_callback(triton.close)
    memory = None
    if settings.shared_memory_bytes and is_on_this_host(location.url):
        memory = SharedMemory(triton, location.memory_prefix, settings.shared_memory_bytes)
        stack.push_async_callback(memory.close)
    model_turns = ModelTurns(limits.inferences_at_once)

    def lane(kind: str, priority: int, gives_way_to: RightOfWay | None = None) -> Lane:
        threads = ThreadPoolExecutor(settings.worker_threads, thread_name_prefix=kind)
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        return Lane(
            triton,
            memory,
            threads,
            model_turns,
            thread_count=settings.worker_threads,
            timeout_seconds=settings.infer_timeout_seconds,
            priority=priority,
            gives_way_to=gives_way_to,
        )

    wake = asyncio.Event()
    loader = ModelLoader(
        triton,
        ModelFolders(None if settings.triton_url else settings.model_repository, settings.settling_seconds),
        allowed=settings.load_models,
        on_change=wake.set,
        end_processes=location.end_model_processes,
    )
    registry = Registry(
        triton,
        loader,
        ready_models=settings.ready_models,
        poll_seconds=settings.poll_seconds,
        wake=wake,
        on_change=on_change,
    )
    right_of_way, holders = RightOfWay(), Holders()
    prompt_lane = lane("prompts", PROMPT_PRIORITY)
    frame_lane = lane("frames", FRAME_PRIORITY, gives_way_to=right_of_way)
    kept = KeptPictures(limits.kept_images_bytes)
    image_budget = PictureBudget(limits.images_bytes, kept, holders, accounts)
    store = ImageStore(Decoder(frame_lane, workers, image_budget, limits), image_budget, kept, frame_lane)
    stack.push_async_callback(store.close)
    drawer, frame_drawer = (Drawer(lane, workers, limits.work_cpu_seconds) for lane in (prompt_lane, frame_lane))
    toolbox = InteractorToolbox(registry)
    budget = MemoryBudget(limits.stream_memory_bytes, limits.memory_bytes)

    def prompt_steps(picture: Picture) -> Steps:
        passes = Passes(prompt_lane, CropCache(picture), limits.stream_inflight)
        return Steps(passes, DetectorProposals(registry, prompt_lane, picture), picture)

    def frame_steps(picture: Picture) -> Steps:
        return Steps(
            Passes(frame_lane, CropCache(picture), 1), DetectorProposals(registry, frame_lane, picture), picture
        )

    def new_predictor(picture: Picture) -> Predictor:
        return Predictor(toolbox, drawer, EstimateMemory(budget), prompt_steps(picture), picture)

    nothing_kept = EstimateMemory(budget)
    nothing_kept.close()

    def prompt_predictor(picture: Picture) -> Predictor:
        return Predictor(toolbox, drawer, nothing_kept, prompt_steps(picture), picture)

    def frame_predictor(picture: Picture) -> Predictor:
        return Predictor(toolbox, frame_drawer, nothing_kept, frame_steps(picture), picture)

    counts = PromptCounts(registry.knows)
    services = Services(
        store,
        new_predictor,
        right_of_way,
        holders,
        Unread(limits.stream_reply_bytes, limits.reply_bytes),
        counts,
        accounts,
        limits,
    )
    permits = FramePermits(Turns(limits.frames_in_work, what="frames"), limits.images_bytes // PAUSED_FRAMES_PART)
    frames = Frames(
        FrameToolbox(registry),
        frame_lane,
        store,
        OutlineMaker(frame_steps, frame_drawer),
        permits,
        accounts,
    )
    segments = Segments(
        SegmentServices(
            store,
            Predictors(prompt_predictor, prompt_lane),
            Predictors(frame_predictor, frame_lane),
            right_of_way,
            permits,
            counts,
            accounts,
            limits.prompt_seconds,
        )
    )
    ingress = Ingress(limits.bodies_bytes)
    messages = Messages(
        Admission(limits, lambda: right_of_way.prompts_expected),
        ingress,
        Drains(settings.stream_max_age_seconds, settings.drain_seconds),
        settings.heartbeat_seconds,
    )
    health = Health(("", SERVICE_NAME), lambda: registry.ready, lambda: registry.not_ready_reason)
    servicer = AnnotationServicer(
        ServerInfo(limits, health, registry),
        registry,
        messages,
        SegmentCalls(segments, messages, prompt_lane),
        InteractCalls(services, messages, prompt_lane),
        DetectCalls(frames, messages, frame_lane, limits.frames_in_flight),
    )
    metrics.IMAGE_MEMORY_LIMIT.set(limits.images_bytes)
    _measure(health, image_budget, kept)
    calls = Calls(SERVICE_NAME, ingress, authenticator, accounts, audit)
    return Parts(registry, health, ingress, messages, servicer, authenticator, calls)


def _measure(health: Health, image_budget: PictureBudget, kept: KeptPictures) -> None:
    loop = asyncio.get_running_loop()
    metrics.READY.set_function(lambda: float(health.ready))
    metrics.IMAGE_MEMORY.set_function(lambda: image_budget.nbytes)
    metrics.KEPT_IMAGE_MEMORY.set_function(lambda: kept.nbytes)
    metrics.TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))


def _audit(settings: Settings) -> AuditLog | None:
    """Open the audit log. Raises SettingError."""
    if settings.audit_log is None:
        return None
    try:
        return AuditLog(settings.audit_log)
    except OSError as error:
        raise SettingError(f"--audit-log: {settings.audit_log} cannot be written: {error.strerror}") from error


def _authenticator(settings: Settings) -> Authenticator:
    """Make the authenticator. Raises SettingError."""
    mutual = settings.tls is not None and settings.tls.client_roots is not None
    try:
        return Authenticator(settings.access, certificates_suffice=mutual)
    except PrincipalsError as error:
        raise SettingError(str(error)) from error
