/** Images as messages: by their bytes, or by the digest of one that the server has accepted before. */

import { webcrypto } from "node:crypto";
import { readFile } from "node:fs/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { PolywandError } from "./errors.js";
import { type ImageSchema, PixelFormat } from "./gen/polywand/v1/annotation_pb.js";
import type { ImageInput, ValueRange } from "./types.js";

export type ImageMessage = MessageInitShape<typeof ImageSchema>;

const MOST_DIGESTS = 1024;

/** An image to send. `whole`: undefined if only the digest is known. `digest`: undefined if no server has accepted it. */
export interface Sendable {
  readonly whole: ImageMessage | undefined;
  readonly bytes: number;
  readonly valueRange: ValueRange | undefined;
  digest: Uint8Array | undefined;
}

/** The message of an image: by its digest, unless the server does not hold it. */
export function messageOf({ whole, digest, valueRange }: Sendable, isHeld = true): ImageMessage {
  if (whole !== undefined && (digest === undefined || !isHeld)) return whole;
  return { source: { case: "digest", value: digest ?? new Uint8Array() }, valueRange };
}

/** The images that a server has accepted: the digests and sizes of the last ones. */
export class AcceptedImages {
  readonly #bytes = new Map<string, number>(); // by digest, the oldest first

  add(image: Sendable, digest: Uint8Array): void {
    image.digest = digest;
    const key = hex(digest);
    this.#bytes.delete(key);
    this.#bytes.set(key, image.bytes);
    const [oldest] = this.#bytes.keys();
    if (this.#bytes.size > MOST_DIGESTS && oldest !== undefined) this.#bytes.delete(oldest);
  }

  /** Read an image. Only one of the size of an accepted one is hashed. Rejects with `PolywandError`. */
  async read(image: ImageInput, valueRange?: ValueRange): Promise<Sendable> {
    if (typeof image === "string" || image instanceof URL) image = await readImage(image);
    if (image instanceof Uint8Array) {
      const whole: ImageMessage = { source: { case: "encoded", value: image }, valueRange };
      return { whole, bytes: image.length, valueRange, digest: await this.#find(image.length, image) };
    }
    if ("digest" in image) return { whole: undefined, bytes: 0, valueRange, digest: image.digest };
    const { data, width, height, format } = image;
    const value = { data, width, height, format: PixelFormat[format] };
    const digest = await this.#find(data.length, Buffer.from(`${format} ${width} ${height}\n`), data);
    return { whole: { source: { case: "raw", value }, valueRange }, bytes: data.length, valueRange, digest };
  }

  async #find(bytes: number, ...parts: Uint8Array[]): Promise<Uint8Array | undefined> {
    if (![...this.#bytes.values()].includes(bytes)) return undefined;
    // In a thread: a large image would hold the event loop.
    const digest = new Uint8Array(await webcrypto.subtle.digest("SHA-256", Buffer.concat(parts)));
    return this.#bytes.has(hex(digest)) ? digest : undefined;
  }
}

function hex(digest: Uint8Array): string {
  return Buffer.from(digest).toString("hex");
}

async function readImage(path: string | URL): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new PolywandError("INVALID_ARGUMENT", `The image cannot be read: ${(cause as Error).message}`, {
      violations: [{ field: "image", description: "no readable file" }],
      cause,
    });
  }
}
