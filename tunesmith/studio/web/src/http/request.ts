/** Its message is for the user. */
export class ServerError extends Error {}

interface Options {
  /** Sent as JSON with POST; without it the request is a GET. */
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** Throws ServerError unless the server answers with success, and an AbortError if `signal` ends the request. */
export async function request(url: string, { body, headers, signal }: Options = {}): Promise<Response> {
  const sends = body !== undefined;
  const response = await reached(
    fetch(url, {
      method: sends ? "POST" : "GET",
      headers: { ...(sends && { "Content-Type": "application/json" }), ...headers },
      body: sends ? JSON.stringify(body) : undefined,
      signal,
    }),
  );
  if (!response.ok) throw new ServerError(await reason(response));
  return response;
}

async function reason(response: Response): Promise<string> {
  if (response.status === 401) return "The server asks for an API key: enter it under Settings.";
  const problem = await response.json().catch(() => null);
  return problem?.error?.message ?? `The server answered ${response.status}.`;
}

/** A request that was stopped stays an AbortError; any other failure of the connection is said in words. */
export async function reached<Result>(answer: Promise<Result>): Promise<Result> {
  try {
    return await answer;
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ServerError("The server does not answer. Is Tunesmith still running?");
  }
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
