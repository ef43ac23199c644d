/** What the tests share: the service that they run against, images, and means to hold it and to cut its connections. */

import assert from "node:assert/strict";
import { randomFillSync } from "node:crypto";
import { appendFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer, connect as dial, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Box, PolywandError, type RawImage } from "@polywand/client";

/** A variable that tests/client/test_typescript.py sets. */
export function variable(name: string): string {
  const value = process.env[name];
  assert(value, `${name} is not set: run these tests by tests/client/test_typescript.py`);
  return value;
}

/** The service with puppets (tests/puppets.py). */
export const TARGET = variable("POLYWAND_TARGET");

/** A black image. */
export function picture(width: number, height: number): RawImage {
  return { data: new Uint8Array(width * height * 3), width, height, format: "RGB8" };
}

/** An image that no server has seen before. */
export function unseen(width: number, height: number): RawImage {
  const image = picture(width, height);
  randomFillSync(image.data, 0, 16);
  return image;
}

/** The middle of an outline, from left to right. */
export function middle({ box }: { box?: Box }): number {
  assert(box !== undefined);
  return (box.x0 + box.x1) / 2;
}

export function near(actual: number, expected: number): void {
  assert(Math.abs(actual - expected) < 3, `${actual}, not ${expected}`);
}

/** The error with which a promise rejects. */
export async function rejection(promise: Promise<unknown>): Promise<PolywandError> {
  const error = await promise.then(
    () => assert.fail("it did not reject"),
    (error: unknown) => error,
  );
  assert(error instanceof PolywandError, String(error));
  return error;
}

export async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!condition()) {
    assert(Date.now() < deadline, "it did not happen within 60 s");
    await sleep(10);
  }
}

/** Holds the inferences of a puppet until `open`: see `Gate` in tests/interactors.py. */
export class Gate {
  readonly #gate: string;
  readonly #begun: string;

  constructor(model: string) {
    const folder = variable("POLYWAND_GATES");
    this.#gate = join(folder, `${model}-gate`);
    this.#begun = join(folder, `${model}-begun`);
    writeFileSync(this.#begun, "");
    writeFileSync(this.#gate, "");
  }

  /** Wait until so many inferences have begun. */
  async begun(count = 1): Promise<void> {
    await until(() => statSync(this.#begun).size >= count);
  }

  letThrough(count = 1): void {
    appendFileSync(this.#gate, ".".repeat(count));
  }

  open(): void {
    rmSync(this.#gate, { force: true });
  }
}

/** A relay to the service, which counts what the client sends, and cuts all connections when told so. */
export class Relay {
  sentBytes = 0;
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((client) => {
    const service = dial(Number(TARGET.split(":").at(-1)), "127.0.0.1");
    client.on("data", (data) => (this.sentBytes += data.length));
    client.pipe(service).pipe(client);
    for (const [one, other] of [
      [client, service],
      [service, client],
    ] as const) {
      this.#sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => {
        this.#sockets.delete(one);
        other.destroy();
      });
    }
  });

  async start(): Promise<string> {
    await new Promise<void>((started) => this.#server.listen(0, "127.0.0.1", started));
    return this.target;
  }

  get target(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  get connections(): number {
    return this.#sockets.size / 2;
  }

  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  stop(): void {
    this.cut();
    this.#server.close();
  }
}
