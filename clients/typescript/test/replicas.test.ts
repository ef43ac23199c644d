/** A session outlives its server: two real replicas, of which one is drained and the other one killed. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { it } from "node:test";
import { connect, type Update } from "@polywand/client";
import { unseen, until, variable } from "./helpers.js";

interface Replica {
  target: string;
  pid: number;
}

it("a drag goes on while its replica is drained, and while the next one is killed", async () => {
  const replicas: Replica[] = JSON.parse(variable("POLYWAND_REPLICAS"));
  const client = connect(`ipv4:${replicas.map(({ target }) => target).join(",")}`);
  const session = await client.open(unseen(800, 600));
  const seen: Update[] = [];
  const reading = (async () => {
    for await (const update of session.updates()) seen.push(update);
  })();
  const end = async (replica: Replica | undefined, signal: NodeJS.Signals): Promise<void> => {
    assert(replica !== undefined);
    const before = seen.length;
    await until(() => seen.length > before + 10);
    process.kill(replica.pid, signal);
    await until(() => !isAlive(replica.pid));
    const then = seen.length;
    await until(() => seen.length > then + 10);
  };

  let x = 100;
  const drag = setInterval(() => {
    x = x < 700 ? x + 1 : 100;
    session.send({ model: "disk", points: [{ x, y: 100 }] });
  }, 15);
  try {
    await end(replicas[0], "SIGTERM");
    await end(replicas[1], "SIGKILL");
  } finally {
    clearInterval(drag);
    await client.close();
  }
  await reading;
  // The caller saw nothing but later answers.
  assert.deepEqual(
    seen.flatMap(({ error }) => error ?? []),
    [],
  );
  const sequences = seen.map(({ sequence }) => sequence);
  assert.deepEqual(
    sequences,
    [...sequences].sort((one, other) => one - other),
  );
});

/** Whether a process runs; one that has ended may not be collected by its parent yet. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
