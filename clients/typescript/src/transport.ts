/** The gRPC channel: calls in messages, metadata, and retries of unary calls. */

import { setMaxListeners } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import {
  type ChannelCredentials,
  Client,
  type ClientDuplexStream,
  credentials,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";
import { Backoff } from "./backoff.js";
import { fromCall, isUnreachable, noAnswer, PolywandError } from "./errors.js";
import { AnnotationService, type InteractResponse, InteractResponseSchema } from "./gen/polywand/v1/annotation_pb.js";
import type { CallOptions, MetadataOption } from "./types.js";

export interface ConnectOptions extends MetadataOption {
  /** TLS with the system's authorities (true), or with these, in PEM. Default: plain text. */
  tls?: boolean | { ca?: string | Uint8Array; cert?: string | Uint8Array; key?: string | Uint8Array };
  /** Sent as `authorization: Bearer ...` with each call; a function is called for each. Not in plain text to another machine. */
  token?: string | (() => string | Promise<string>);
  /** For any one answer, with all retries. Default: 30000. */
  timeoutMs?: number;
}

export type Stream = ClientDuplexStream<Uint8Array, InteractResponse>;

const TIMEOUT_MS = 30_000;
const CHANNEL_OPTIONS = {
  "grpc.max_receive_message_length": -1, // polygons at tolerance 0 and masks may be large
  "grpc.max_send_message_length": -1, // the server's error names its limit
  // Detects a lost server within 40 s, and keeps idle connections through NATs open.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 2000, // an annotator waits for a server that restarts
};

export class Transport {
  readonly target: string;
  readonly timeoutMs: number;
  /** Whether a server has ever answered: only then is one that cannot be reached expected to come back. */
  reached = false;
  readonly #client: Client;
  readonly #options: ConnectOptions;
  readonly #closed = new AbortController();

  constructor(target: string, options: ConnectOptions) {
    setMaxListeners(0, this.closed); // one for each call in progress
    this.target = target;
    this.timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
    this.#options = options;
    const local = isLocal(target);
    if (options.token !== undefined && !options.tls && !local) {
      throw invalid("token", "a token is not sent in plain text to another machine: set tls");
    }
    this.#client = new Client(target, channelCredentials(options.tls), {
      ...CHANNEL_OPTIONS,
      "grpc.enable_http_proxy": local ? 0 : 1,
    });
  }

  /** Aborted when the client is closed. */
  get closed(): AbortSignal {
    return this.#closed.signal;
  }

  close(): void {
    this.#closed.abort(new PolywandError("CANCELLED", "This client is closed.", { reason: "CLIENT_CLOSED" }));
    this.#client.close();
  }

  /** Make a unary call. While the server is full or Triton is away, it is made again, with growing delays. */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    firstDelayMs: number,
    { timeoutMs = this.timeoutMs, signal, metadata }: CallOptions & MetadataOption,
  ): Promise<MessageShape<O>> {
    const bytes = encode(method.input, request);
    const deadline = Date.now() + timeoutMs;
    const backoff = new Backoff(firstDelayMs);
    const ends = signal === undefined ? this.closed : AbortSignal.any([this.closed, signal]);
    for (;;) {
      try {
        return await this.#once(method, bytes, deadline, await this.metadata(metadata), ends);
      } catch (error) {
        if (!(error instanceof PolywandError)) throw error;
        if (error.code === "DEADLINE_EXCEEDED" && Date.now() >= deadline) throw noAnswer(this.target, timeoutMs);
        if (!error.temporary || (isUnreachable(error) && !this.reached)) throw error;
        const delay = backoff.nextMs(error.retryAfterMs);
        if (Date.now() + delay >= deadline) throw error;
        await pause(delay, ends);
      }
    }
  }

  /** Open a stream. */
  interact(metadata: Metadata): Stream {
    const read = (bytes: Buffer): InteractResponse => fromBinary(InteractResponseSchema, bytes);
    return this.#client.makeBidiStreamRequest(path(AnnotationService.method.interact), asBuffer, read, metadata);
  }

  /** The metadata of one call. */
  async metadata(more: Record<string, string> = {}): Promise<Metadata> {
    const metadata = new Metadata({ waitForReady: this.reached }); // then, a server that is away comes back
    for (const [key, value] of Object.entries({ ...this.#options.metadata, ...more })) metadata.set(key, value);
    const { token } = this.#options;
    if (token !== undefined) {
      metadata.set("authorization", `Bearer ${typeof token === "function" ? await token() : token}`);
    }
    return metadata;
  }

  #once<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    bytes: Uint8Array,
    deadline: number,
    metadata: Metadata,
    ends: AbortSignal,
  ): Promise<MessageShape<O>> {
    ends.throwIfAborted();
    const read = (reply: Buffer): MessageShape<O> => fromBinary(method.output, reply);
    return new Promise((resolve, reject) => {
      const answered = (error: ServiceError | null, reply?: MessageShape<O>): void => {
        ends.removeEventListener("abort", cancel);
        this.reached ||= error === null;
        if (reply !== undefined) resolve(reply);
        else reject(ends.aborted ? ends.reason : fromCall(error as ServiceError, this.target));
      };
      const call = this.#client.makeUnaryRequest(path(method), asBuffer, read, bytes, metadata, { deadline }, answered);
      const cancel = (): void => call.cancel();
      ends.addEventListener("abort", cancel, { once: true });
    });
  }
}

async function pause(delayMs: number, ends: AbortSignal): Promise<void> {
  await sleep(delayMs, undefined, { signal: ends }).catch(() => ends.throwIfAborted());
}

/** A message's bytes. An impossible value, such as a fraction for an integer, is the caller's error. */
export function encode<T extends DescMessage>(schema: T, message: MessageInitShape<T>): Uint8Array {
  try {
    return toBinary(schema, create(schema, message));
  } catch (cause) {
    throw new PolywandError("INVALID_ARGUMENT", `The request is invalid: ${(cause as Error).message}`, { cause });
  }
}

export function invalid(field: string, description: string): PolywandError {
  return new PolywandError("INVALID_ARGUMENT", `${field}: ${description}`, { violations: [{ field, description }] });
}

function channelCredentials(tls: ConnectOptions["tls"]): ChannelCredentials {
  if (!tls) return credentials.createInsecure();
  const { ca, cert, key } = tls === true ? {} : tls;
  return credentials.createSsl(pem(ca), pem(key), pem(cert));
}

function pem(text: string | Uint8Array | undefined): Buffer | null {
  return text === undefined ? null : Buffer.from(text as string);
}

/** Whether a target is on this machine: no proxy stands before it, and nobody listens on the way. */
function isLocal(target: string): boolean {
  if (target.startsWith("unix:")) return true;
  const address = target.replace(/^(dns|ipv4|ipv6):(\/\/[^/]*\/)?/, "");
  return /^(localhost|[\w.-]+\.localhost|127(\.\d+){3}|\[::1\])(:\d+)?$/.test(address);
}

function path(method: { parent: { typeName: string }; name: string }): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
