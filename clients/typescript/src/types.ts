/**
 * Plain types of questions and answers. Coordinates are image pixels, x to the right, y down, with pixel *corners* at
 * integers: the centre of the pixel in column c and row r is (c + 0.5, r + 0.5).
 */

import type { PolywandError } from "./errors.js";
import type * as pb from "./gen/polywand/v1/annotation_pb.js";

/** A file's path, its bytes, pixels, or the digest of an image that the server holds. */
export type ImageInput = string | URL | Uint8Array | RawImage | { digest: Uint8Array };

/** Pixels, row by row from the top, without padding. */
export interface RawImage {
  data: Uint8Array;
  width: number;
  height: number;
  format: PixelFormat;
}

/** Bytes of a pixel; GRAY16 has the lower one first. RGBA8 is laid on white. */
export type PixelFormat = "RGB8" | "BGR8" | "GRAY8" | "RGBA8" | "GRAY16";

/** The values that are black and white in a PNG or TIFF file with more than 8 bits, or in GRAY16 pixels. */
export interface ValueRange {
  low: number;
  high: number;
}

/** A decoded image. `digest`: 32 bytes, by which it can be named while the server holds it. */
export interface ImageInfo {
  width: number;
  height: number;
  digest: Uint8Array;
}

export interface Box {
  x0: number;
  y0: number;
  x1: number;
  y1: number;
}

/** On the object; not on it; on its outline at the left-, top-, right- or bottom-most point. */
export type PointLabel = "positive" | "negative" | "extreme";

/** A click. `label` is "positive" unless given. */
export interface Point {
  x: number;
  y: number;
  label?: PointLabel;
}

/** Vertices [x, y] of a closed line; the last one joins the first and is not repeated. */
export type Ring = [x: number, y: number][];

/** One connected part of an object: clockwise on a screen, holes counter-clockwise. */
export interface Polygon {
  exterior: Ring;
  holes: Ring[];
}

/** A mask in COCO's compressed run lengths. */
export interface Rle {
  width: number;
  height: number;
  counts: string;
}

/** An existing annotation to refine: run lengths, or else polygons. An earlier outline is one. */
export interface Seed {
  rle?: Rle;
  polygons?: Polygon[];
}

export type OutputForm = "polygons" | "rle" | "png" | "box";

/** Options of an outline; a change of these alone never runs the network again. */
export interface OutputOptions {
  /** Lowest probability of a pixel of the object, above 0 and below 1. Default: the model's own. */
  threshold?: number;
  /** Largest distance of the simplified outline from the exact one, in pixels. 0 keeps every vertex. */
  tolerance?: number;
  /** Most vertices of all rings together, 3 to 100000. */
  maxPoints?: number;
  /** What to send; polygons by default. The box and the area are always sent. */
  forms?: OutputForm[];
}

/** The whole current prompt of one object. To undo a point, leave it out. */
export interface Prompt extends OutputOptions {
  /** An interactor; the server's choice by default. */
  model?: string;
  /** Of the model; 0, the default, is the highest that is ready. */
  version?: number;
  /** Your id for the object, if there are several on the image. */
  objectId?: string;
  /** In the order of the clicks. */
  points?: Point[];
  box?: Box;
  seed?: Seed;
}

/** An outline, in the forms that were asked for. */
export interface Shape {
  /** The object's parts, largest first. */
  polygons: Polygon[];
  /** Of the outline; undefined when nothing was found. */
  box?: Box;
  /** In square pixels, without holes, before simplification. */
  area: number;
  rle?: Rle;
  /** A PNG file of the image's size, one bit a pixel: white is the object. */
  png?: Uint8Array;
  /** The tolerance that was applied, in pixels. */
  tolerance: number;
  /** Intersection over union of the polygons and the outline before simplification. */
  iou: number;
}

/** Another answer to the same prompt. */
export interface Candidate extends Shape {
  score: number;
}

/** What a score is; scores of different kinds or tools cannot be compared. */
export type ScoreKind = "mean_probability" | "predicted_iou" | "seed" | "unknown";

/** The outline of one object. */
export interface Segmentation extends Shape {
  model: string;
  version: number;
  /** The threshold that was used. */
  threshold: number;
  /** How sure the tool is, 0 to 1. */
  score: number;
  scoreKind: ScoreKind;
  /** The tool's other answers, the surest first; often empty. */
  alternatives: Candidate[];
  /** Whether the same prompt, sent again, may get another answer. */
  provisional: boolean;
}

/** How long each stage took, in microseconds; 0 for stages that did not happen. */
export type Timing = Plain<Omit<pb.Timing, "receiveTime">> & {
  /** When the message was received, by the server's clock. */
  receiveTime?: Date;
};

/** An answer on a session, to `send` or to `prompt`. */
export interface Update {
  objectId: string;
  /** As returned by `send`. */
  sequence: number;
  /** How many older prompts of the object this answer replaces. */
  skipped: number;
  /** One of these two is set. */
  segmentation?: Segmentation;
  error?: PolywandError;
  timing?: Timing;
}

export interface SegmentOptions extends OutputOptions, CallOptions, MetadataOption {
  /** The tool of the prompts that name none. */
  model?: string;
  version?: number;
  /** See only this part of the image. All coordinates stay those of the whole image. */
  roi?: Box;
  valueRange?: ValueRange;
}

/** The answer to one prompt: exactly one of `segmentation` and `error` is set. */
export type SegmentResult =
  | { objectId: string; segmentation: Segmentation; error?: undefined }
  | { objectId: string; segmentation?: undefined; error: PolywandError };

/** The answers to a `segment`, in the order of the prompts. */
export interface SegmentAnswer {
  image: ImageInfo;
  results: SegmentResult[];
  timing: Timing;
}

/** What becomes of one label of the model. */
export interface LabelMapping {
  modelLabel: string;
  /** Default: the model's. */
  label?: string;
  /** Lowest score with this label. Default: the request's. */
  threshold?: number;
}

export interface DetectOptions extends CallOptions, MetadataOption {
  /** A detector; the server's choice by default. */
  model?: string;
  version?: number;
  /** Lowest score, 0 to 1. Default: the model's own. */
  threshold?: number;
  /** Detections with other labels are dropped. Default: all labels, with the model's names. */
  labels?: LabelMapping[];
  /** Most detections, best first, 1 to 1000. Default: 100. */
  maxDetections?: number;
  /** Outline every detection. */
  polygons?: boolean | ({ model?: string; version?: number } & OutputOptions);
  /** Detect in this part of the image only. All coordinates stay those of the whole image. */
  roi?: Box;
  valueRange?: ValueRange;
}

/** One detected object. */
export interface Detection {
  label: string;
  modelLabel: string;
  score: number;
  box: Box;
  /** Present if `polygons` was asked for. */
  outline?: Shape;
}

/** The detections on an image, best first. */
export interface Detections {
  detections: Detection[];
  image: ImageInfo;
  model: string;
  version: number;
  /** The interactor of the outlines; undefined without `polygons`. */
  polygons?: { model: string; version: number; threshold: number };
  timing: Timing;
}

export type ModelState = "loading" | "ready" | "unavailable" | "failed" | "unknown";

/** One tool of the server. */
export interface Model {
  name: string;
  kind: "interactor" | "detector" | "unknown";
  displayName: string;
  versions: { version: number; state: ModelState; stateMessage: string }[];
  state: ModelState;
  /** Why it is not ready, in a sentence; empty if it is. */
  stateMessage: string;
  helpMessage: string;
  animatedGif: string;
  license: string;
  weightsSource: string;
  defaultThreshold: number;
  /** What a prompt must have; of interactors. */
  interactor?: Plain<Omit<pb.InteractorSpec, "box">> & { box: "none" | "optional" | "required" | "unknown" };
  /** The labels, by class index; of detectors. */
  labels?: { name: string; color: string; parent: string }[];
}

/** What a server is. */
export interface ServerInfo {
  version: string;
  state: "starting" | "ready" | "draining" | "unknown";
  /** Why it is not ready, in a sentence; empty if it is. */
  stateMessage: string;
  limits: Plain<pb.ServerLimits>;
  capabilities: {
    imageTypes: string[];
    pixelFormats: PixelFormat[];
    outputForms: OutputForm[];
    defaultDetector: string;
  };
}

export interface CallOptions {
  /** For the answer, with all retries. Default: the client's. */
  timeoutMs?: number;
  /** Ends the wait; the promise is then rejected with the signal's reason. */
  signal?: AbortSignal;
}

/** Sent with one call; a session is one call, until its stream is replaced. */
export interface MetadataOption {
  /** Such as `x-request-id` or `traceparent`; beside the client's own. */
  metadata?: Record<string, string>;
}

/** A message's fields alone. */
export type Plain<T> = Omit<T, "$typeName" | "$unknown">;
