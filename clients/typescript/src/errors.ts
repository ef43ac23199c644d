/** Typed errors, and how they are read from gRPC. */

import { fromBinary, type Message } from "@bufbuild/protobuf";
import type { GenMessage } from "@bufbuild/protobuf/codegenv2";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { type Metadata, type ServiceError, status } from "@grpc/grpc-js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";
import { type Status, StatusSchema } from "./gen/google/rpc/status_pb.js";
import type { Incomplete } from "./gen/polywand/v1/annotation_pb.js";

/** A canonical gRPC code: "INVALID_ARGUMENT", "NOT_FOUND" ... */
export type Code = keyof typeof status;

/** A field of the request, by its path in the contract ("prompt.points[3].x"), and its error. */
export interface Violation {
  field: string;
  description: string;
}

/** A limit that the server has reached: the resource ("images"), and the limit in words. */
export interface Quota {
  subject: string;
  description: string;
}

interface Details {
  reason?: string;
  violations?: Violation[];
  quotas?: Quota[];
  retryAfterMs?: number;
  requestId?: string;
  cause?: unknown;
}

/** The error of a call, a prompt or an image. Its `message` is a sentence for people; all else is for programs. */
export class PolywandError extends Error {
  override readonly name: string = "PolywandError";
  readonly code: Code;
  /**
   * Why, such as "IMAGE_NOT_HELD": docs/api.md lists the server's reasons. This client's own are "CLIENT_CLOSED",
   * "SESSION_CLOSED", "SUPERSEDED" (by a newer image), "FORGOTTEN" and "INCOMPLETE_PROMPT". Empty: gRPC or a proxy
   * gave none.
   */
  readonly reason: string;
  /** The invalid fields of the request. */
  readonly violations: readonly Violation[];
  /** The limits that the server has reached. */
  readonly quotas: readonly Quota[];
  /** When to try again, if the server says so. */
  readonly retryAfterMs: number | undefined;
  /** Of the call, in the server's log; empty if the server sent none. */
  readonly requestId: string;

  constructor(code: Code, message: string, details: Details = {}) {
    super(message || `The server answered ${code} without a text.`, { cause: details.cause });
    this.code = code;
    this.reason = details.reason ?? "";
    this.violations = details.violations ?? [];
    this.quotas = details.quotas ?? [];
    this.retryAfterMs = details.retryAfterMs;
    this.requestId = details.requestId ?? "";
  }

  /** Whether the same request may succeed later: the server is full, or Triton or the model is unavailable. */
  get temporary(): boolean {
    return this.code === "UNAVAILABLE" || (this.code === "RESOURCE_EXHAUSTED" && this.retryAfterMs !== undefined);
  }
}

/** The tool needs more points or a box: the message says what, for people, and `missing`, for programs. */
export class IncompletePrompt extends PolywandError {
  override readonly name = "IncompletePrompt";
  readonly missing: { positivePoints: number; negativePoints: number; extremePoints: number; box: boolean };

  constructor(incomplete: Incomplete) {
    const message = `The tool needs ${incomplete.message || "more"}.`;
    super("FAILED_PRECONDITION", message, { reason: "INCOMPLETE_PROMPT" });
    this.missing = {
      positivePoints: incomplete.missingPositivePoints,
      negativePoints: incomplete.missingNegativePoints,
      extremePoints: incomplete.missingExtremePoints,
      box: incomplete.missingBox,
    };
  }
}

/** Read the error in a `google.rpc.Status`. */
export function fromStatus(received: Status): PolywandError {
  const find = <T extends Message>(schema: GenMessage<T>): T | undefined => {
    for (const detail of received.details) {
      const found = anyUnpack(detail, schema);
      if (found !== undefined) return found;
    }
    return undefined;
  };
  const retry = find(RetryInfoSchema)?.retryDelay;
  return new PolywandError(codeOf(received.code), received.message, {
    reason: find(ErrorInfoSchema)?.reason,
    violations: find(BadRequestSchema)?.fieldViolations.map(({ field, description }) => ({ field, description })),
    quotas: find(QuotaFailureSchema)?.violations.map(({ subject, description }) => ({ subject, description })),
    retryAfterMs: retry && Number(retry.seconds) * 1000 + retry.nanos / 1e6,
    requestId: find(RequestInfoSchema)?.requestId,
  });
}

/** Read the error that ended a call to `target`: the server's, gRPC's or a proxy's. */
export function fromCall(error: ServiceError, target: string): PolywandError {
  const details = error.metadata?.get("grpc-status-details-bin")[0];
  if (details instanceof Uint8Array) {
    const rich = fromBinary(StatusSchema, details);
    if (rich.code === error.code) return fromStatus(rich); // else a proxy changed it: the details are not its own
  }
  const code = codeOf(error.code);
  const more = { requestId: requestId(error.metadata), cause: error };
  switch (code) {
    case "OK":
      return new PolywandError("UNAVAILABLE", `${target} ended the stream.`, more);
    case "UNAVAILABLE":
      return new PolywandError(code, `No Polywand server answers at ${target}: ${error.details}`, more);
    case "DEADLINE_EXCEEDED":
      return new PolywandError(code, `${target} did not answer in time.`, more);
    case "UNIMPLEMENTED":
      return new PolywandError(code, `${target} answers, but has no such call: ${error.details}`, more);
    default:
      return new PolywandError(code, error.details, more);
  }
}

/** Whether a call failed before any server was reached. */
export function isUnreachable(error: PolywandError): boolean {
  return /No connection established|Name resolution failed|Failed to connect/.test(
    (error.cause as ServiceError | undefined)?.details ?? "",
  );
}

/** Whether the server does not hold the image that was named by its digest. */
export function isNotHeld(error: unknown): boolean {
  return error instanceof PolywandError && error.reason === "IMAGE_NOT_HELD";
}

export function noAnswer(target: string, timeoutMs: number): PolywandError {
  return new PolywandError("DEADLINE_EXCEEDED", `${target} did not answer within ${timeoutMs} ms.`);
}

export function unknownAnswer(): PolywandError {
  return new PolywandError("UNIMPLEMENTED", "The server's answer is not known to this version of the client.");
}

function codeOf(code: number): Code {
  return (status[code] as Code | undefined) ?? "UNKNOWN";
}

function requestId(metadata: Metadata | undefined): string {
  return metadata?.get("x-request-id")[0]?.toString() ?? "";
}
