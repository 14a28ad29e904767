// One request to the studio: its token, its version, its errors.

import { storedToken } from "./token";
import { Value } from "./value";

const TOKEN_HEADER = "X-Tunesmith-Token";
const VERSION_HEADER = "X-Tunesmith-Version";

/** Its message is for the user. `status` is 0 if the studio did not answer. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    /** What the server says beside the message. */
    readonly further: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

/** Whether the studio refused the token, so that the user must enter it. */
export const locked = new Value(false);

/** The versions of the studio that answered first and last. They differ after an update: this page is then old. */
export const versions = new Value<{ first: string; last: string }>({ first: "", last: "" });

/** The studio's address without a slash at the end. */
export const base = new URL(".", location.href).href.replace(/\/$/, "");

/** Sends a request as the studio wants it. Throws ApiError if the studio does not answer or refuses the token. */
export async function send(request: Request): Promise<Response> {
  const token = storedToken();
  const again = request.clone();
  const response = await attempt(request, token);
  if (response.status !== 401) {
    locked.set(false);
    return response;
  }
  const newer = storedToken();
  if (newer !== token) {
    const second = await attempt(again, newer);
    if (second.status !== 401) return second;
  }
  locked.set(true);
  throw new ApiError("The studio does not accept this key.", 401);
}

async function attempt(request: Request, token: string): Promise<Response> {
  const headers = new Headers(request.headers);
  headers.set(TOKEN_HEADER, token);
  // The studio takes changes only as JSON, also those without values.
  const isEmptyChange = request.method !== "GET" && !request.headers.has("Content-Type");
  if (isEmptyChange) headers.set("Content-Type", "application/json");
  try {
    const response = await fetch(new Request(request, { headers, ...(isEmptyChange && { body: "{}" }) }));
    note(response.headers.get(VERSION_HEADER) ?? "");
    return response;
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The studio does not answer. Is `tunesmith studio` still running?", 0);
  }
}

function note(version: string): void {
  const { first } = versions.get();
  if (version && version !== versions.get().last) versions.set({ first: first || version, last: version });
}

/** The error that an answer of the studio is. */
export function errorOf(answer: unknown, status: number): ApiError {
  const error = (answer as { error?: { message?: string } } | null)?.error;
  const { message, ...further } = error ?? {};
  return new ApiError(message ?? `The studio answered ${status}.`, status, further);
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
