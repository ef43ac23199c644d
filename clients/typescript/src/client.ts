/** The client: unary calls, and sessions. */

import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { FIRST_DELAY_MS, FIRST_IMAGE_DELAY_MS } from "./backoff.js";
import { isNotHeld } from "./errors.js";
import {
  AnnotationService,
  type ImageInfo as ImageInfoMessage,
  type Model as ModelMessage,
} from "./gen/polywand/v1/annotation_pb.js";
import { AcceptedImages, type ImageMessage, messageOf } from "./images.js";
import { Session } from "./session.js";
import { type ConnectOptions, Transport } from "./transport.js";
import type {
  CallOptions,
  Detections,
  DetectOptions,
  ImageInput,
  MetadataOption,
  Model,
  Prompt,
  SegmentAnswer,
  SegmentOptions,
  ServerInfo,
  ValueRange,
} from "./types.js";
import * as wire from "./wire.js";

const { getServerInfo, listModels, segment, detect } = AnnotationService.method;

/**
 * Make a client. Nothing is sent before the first call, so the server may start later.
 *
 * @param target "host:port" or any gRPC target, such as "dns:///polywand.example.org:443".
 */
export function connect(target: string, options: ConnectOptions = {}): Client {
  return new Client(new Transport(target, options));
}

/**
 * A connection to a server. Its calls reject with `PolywandError`. While the server is full or Triton is unavailable,
 * they are made again, with growing delays, until their timeout.
 */
export class Client implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #accepted = new AcceptedImages();
  readonly #sessions = new Set<Session>();

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** The server's version, its limits, what it can read and write. */
  async serverInfo(options: CallOptions & MetadataOption = {}): Promise<ServerInfo> {
    return wire.readServerInfo(await this.#transport.unary(getServerInfo, {}, FIRST_DELAY_MS, options));
  }

  /** The tools that exist now, by name. */
  async models(options: CallOptions & MetadataOption = {}): Promise<Model[]> {
    const models: ModelMessage[] = [];
    let pageToken = "";
    do {
      const page = await this.#transport.unary(listModels, { pageToken }, FIRST_DELAY_MS, options);
      models.push(...page.models);
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    return models.map(wire.readModel);
  }

  /** Outline one or many objects on one image. Each prompt gets its outline or its own error. */
  async segment(image: ImageInput, prompts: Prompt[], options: SegmentOptions = {}): Promise<SegmentAnswer> {
    const { model, version, roi } = options;
    const request = {
      prompts: prompts.map(wire.promptMessage),
      model,
      version,
      roi,
      output: wire.outputMessage(options),
    };
    const reply = await this.#onImage(segment, image, request, options);
    return {
      image: wire.readImage(reply.image),
      results: reply.results.map(wire.readSegmentResult),
      timing: wire.readTiming(reply.timing),
    };
  }

  /** Find objects on one image. */
  async detect(image: ImageInput, options: DetectOptions = {}): Promise<Detections> {
    return wire.readDetections(await this.#onImage(detect, image, wire.detectMessage(options), options));
  }

  /** Open a session on an image: for an annotator's clicks, each of which builds on the last. */
  async open(
    image: ImageInput,
    options: CallOptions & MetadataOption & { valueRange?: ValueRange } = {},
  ): Promise<Session> {
    const session = new Session(this.#transport, this.#accepted, options.metadata, () =>
      this.#sessions.delete(session),
    );
    this.#sessions.add(session);
    try {
      await session.setImage(image, options);
    } catch (error) {
      await session.close();
      throw error;
    }
    return session;
  }

  /** Close the connection, and all sessions. */
  async close(): Promise<void> {
    await Promise.all([...this.#sessions].map((session) => session.close()));
    this.#transport.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Make a call with an image: by the digest of one that was accepted before, and by its bytes if it is not held. */
  async #onImage<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    input: ImageInput,
    request: MessageInitShape<I>,
    options: CallOptions & MetadataOption & { valueRange?: ValueRange },
  ): Promise<MessageShape<O>> {
    const image = await this.#accepted.read(input, options.valueRange);
    const { timeoutMs = this.#transport.timeoutMs } = options;
    const deadline = Date.now() + timeoutMs;
    const call = (message: ImageMessage): Promise<MessageShape<O>> => {
      const left = { ...options, timeoutMs: deadline - Date.now() };
      return this.#transport.unary(method, { ...request, image: message }, FIRST_IMAGE_DELAY_MS, left);
    };
    const reply = await call(messageOf(image)).catch((error: unknown) => {
      if (image.whole !== undefined && isNotHeld(error)) return call(image.whole);
      throw error;
    });
    this.#accepted.add(image, wire.readImage((reply as { image?: ImageInfoMessage }).image).digest);
    return reply;
  }
}
