/** Polywand's client for Node: clicks in, polygons out. */

export { Client, connect } from "./client.js";
export { type Code, IncompletePrompt, PolywandError, type Quota, type Violation } from "./errors.js";
export { Session } from "./session.js";
export type { ConnectOptions } from "./transport.js";
export type * from "./types.js";
