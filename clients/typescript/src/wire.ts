/** Plain types to the contract's messages, and back. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { fromStatus, IncompletePrompt, type PolywandError, unknownAnswer } from "./errors.js";
import * as pb from "./gen/polywand/v1/annotation_pb.js";
import type {
  Detections,
  DetectOptions,
  ImageInfo,
  Model,
  OutputForm,
  OutputOptions,
  PixelFormat,
  Plain,
  PointLabel,
  Polygon,
  Prompt,
  Ring,
  Seed,
  Segmentation,
  SegmentResult,
  ServerInfo,
  Shape,
  Timing,
} from "./types.js";

const POINT_LABELS: Record<PointLabel, pb.PointLabel> = {
  positive: pb.PointLabel.POSITIVE,
  negative: pb.PointLabel.NEGATIVE,
  extreme: pb.PointLabel.EXTREME,
};
const FORMS: Record<OutputForm, pb.OutputForm> = {
  polygons: pb.OutputForm.POLYGONS,
  rle: pb.OutputForm.RLE,
  png: pb.OutputForm.PNG,
  box: pb.OutputForm.BOX,
};
const FORMATS: Record<PixelFormat, pb.PixelFormat> = {
  RGB8: pb.PixelFormat.RGB8,
  BGR8: pb.PixelFormat.BGR8,
  GRAY8: pb.PixelFormat.GRAY8,
  RGBA8: pb.PixelFormat.RGBA8,
  GRAY16: pb.PixelFormat.GRAY16,
};
const SCORE_KINDS = {
  mean_probability: pb.ScoreKind.MEAN_PROBABILITY,
  predicted_iou: pb.ScoreKind.PREDICTED_IOU,
  seed: pb.ScoreKind.SEED,
};
const KINDS = { interactor: pb.ModelKind.INTERACTOR, detector: pb.ModelKind.DETECTOR };
const STATES = {
  loading: pb.ModelState.LOADING,
  ready: pb.ModelState.READY,
  unavailable: pb.ModelState.UNAVAILABLE,
  failed: pb.ModelState.FAILED,
};
const BOX_USES = { none: pb.BoxUse.NONE, optional: pb.BoxUse.OPTIONAL, required: pb.BoxUse.REQUIRED };
const SERVER_STATES = {
  starting: pb.ServerState.STARTING,
  ready: pb.ServerState.READY,
  draining: pb.ServerState.DRAINING,
};

export function promptMessage(prompt: Prompt): MessageInitShape<typeof pb.PromptSchema> {
  return {
    model: prompt.model,
    version: prompt.version,
    objectId: prompt.objectId,
    points: prompt.points?.map(({ x, y, label = "positive" }) => ({ x, y, label: POINT_LABELS[label] })),
    box: prompt.box,
    output: outputMessage(prompt),
    seed: prompt.seed && seedMessage(prompt.seed),
  };
}

/** Undefined where no option is given. */
export function outputMessage(options: OutputOptions): MessageInitShape<typeof pb.OutputOptionsSchema> | undefined {
  const { threshold, tolerance, maxPoints, forms } = options;
  if ([threshold, tolerance, maxPoints, forms].every((option) => option === undefined)) return undefined;
  return { threshold, tolerance, maxPoints, forms: forms?.map((form) => FORMS[form]) };
}

function seedMessage({ rle, polygons }: Seed): MessageInitShape<typeof pb.SeedMaskSchema> {
  if (rle !== undefined) return { source: { case: "rle", value: rle } };
  return { source: { case: "polygons", value: { polygons: polygons?.map(polygonMessage) ?? [] } } };
}

function polygonMessage({ exterior, holes }: Polygon): MessageInitShape<typeof pb.PolygonSchema> {
  return { exterior: { coordinates: exterior.flat() }, holes: holes.map((hole) => ({ coordinates: hole.flat() })) };
}

export function detectMessage(options: DetectOptions): MessageInitShape<typeof pb.DetectRequestSchema> {
  const outlined = options.polygons === true ? {} : options.polygons || undefined;
  return {
    model: options.model,
    version: options.version,
    threshold: options.threshold,
    labels: options.labels,
    maxDetections: options.maxDetections,
    polygons: outlined && { model: outlined.model, version: outlined.version, output: outputMessage(outlined) },
    roi: options.roi,
  };
}

export function readSegmentResult({ objectId, result }: pb.SegmentResult): SegmentResult {
  if (result.case === "segmentation") return { objectId, segmentation: readSegmentation(result.value) };
  return { objectId, error: readError(result) };
}

/** The error in a result that has no outline. */
export function readError(result: pb.SegmentResult["result"] | pb.InteractResponse["result"]): PolywandError {
  if (result.case === "error") return fromStatus(result.value);
  if (result.case === "incomplete") return new IncompletePrompt(result.value);
  return unknownAnswer();
}

export function readSegmentation(message: pb.Segmentation): Segmentation {
  return {
    ...readShape(message.shape),
    model: message.model,
    version: message.version,
    threshold: message.threshold,
    score: message.score,
    scoreKind: nameOf(SCORE_KINDS, message.scoreKind),
    alternatives: message.alternatives.map(({ shape, score }) => ({ ...readShape(shape), score })),
    provisional: message.provisional,
  };
}

function readShape(message = create(pb.ShapeSchema)): Shape {
  const shape: Shape = {
    polygons: message.polygons.map(({ exterior, holes }) => ({ exterior: ring(exterior), holes: holes.map(ring) })),
    area: message.area,
    tolerance: message.tolerance,
    iou: message.iou,
  };
  if (message.box !== undefined) shape.box = plain(message.box);
  if (message.rle !== undefined) shape.rle = plain(message.rle);
  if (message.png.length > 0) shape.png = message.png;
  return shape;
}

function ring({ coordinates } = create(pb.RingSchema)): Ring {
  const vertices: Ring = [];
  for (let i = 0; i + 1 < coordinates.length; i += 2) {
    vertices.push([coordinates[i] as number, coordinates[i + 1] as number]);
  }
  return vertices;
}

export function readDetections(message: pb.DetectResponse): Detections {
  const answer: Detections = {
    detections: message.detections.map(({ label, modelLabel, score, box, shape }) => ({
      label,
      modelLabel,
      score,
      box: plain(box ?? create(pb.BoxSchema)),
      ...(shape && { outline: readShape(shape) }),
    })),
    image: readImage(message.image),
    model: message.model,
    version: message.version,
    timing: readTiming(message.timing),
  };
  if (message.polygons !== undefined) answer.polygons = plain(message.polygons);
  return answer;
}

export function readImage(message = create(pb.ImageInfoSchema)): ImageInfo {
  return plain(message);
}

export function readTiming(message = create(pb.TimingSchema)): Timing {
  const { receiveTime, ...stages } = plain(message);
  return receiveTime === undefined ? stages : { ...stages, receiveTime: timestampDate(receiveTime) };
}

export function readModel(message: pb.Model): Model {
  const { kind, state, versions, spec, ...texts } = plain(message);
  const model: Model = {
    ...texts,
    kind: nameOf(KINDS, kind),
    state: nameOf(STATES, state),
    versions: versions.map((version) => ({ ...plain(version), state: nameOf(STATES, version.state) })),
  };
  if (spec.case === "interactor") {
    model.interactor = { ...plain(spec.value), box: nameOf(BOX_USES, spec.value.box) };
  } else if (spec.case === "detector") {
    model.labels = spec.value.labels.map(plain);
  }
  return model;
}

export function readServerInfo(message: pb.GetServerInfoResponse): ServerInfo {
  const { version, state, stateMessage, limits = create(pb.ServerLimitsSchema) } = message;
  const { capabilities = create(pb.CapabilitiesSchema) } = message;
  return {
    version,
    state: nameOf(SERVER_STATES, state),
    stateMessage,
    limits: plain(limits),
    capabilities: {
      imageTypes: capabilities.imageTypes,
      pixelFormats: known(FORMATS, capabilities.pixelFormats),
      outputForms: known(FORMS, capabilities.outputForms),
      defaultDetector: capabilities.defaultDetector,
    },
  };
}

/** The name of an enum's value; "unknown" for one of a newer server. */
function nameOf<N extends string>(names: Record<N, number>, value: number): N | "unknown" {
  return known(names, [value])[0] ?? "unknown";
}

/** The names of those values that this version knows. */
function known<N extends string>(names: Record<N, number>, values: number[]): N[] {
  const all = Object.keys(names) as N[];
  return values.flatMap((value) => all.filter((name) => names[name] === value));
}

function plain<T extends object>(message: T): Plain<T> {
  const { $typeName, $unknown, ...fields } = message as T & { $typeName?: string; $unknown?: unknown };
  return fields as Plain<T>;
}
