import { base, errorOf } from "../../api/http";
import { storedToken } from "../../api/token";
import type { Schemas } from "../../api/client";

const BINARY = "application/octet-stream";

export interface Upload {
  done: Promise<Schemas["Uploaded"]>;
  stop: () => void;
}

/** Sends a file to the studio's disk. `onProgress` gets the share that was sent. XMLHttpRequest, as fetch() cannot say
 *  how much of a body is sent. */
export function upload(file: File, onProgress: (share: number) => void): Upload {
  const request = new XMLHttpRequest();
  const done = new Promise<Schemas["Uploaded"]>((resolve, reject) => {
    request.open("POST", `${base}/api/uploads?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("Content-Type", BINARY);
    request.setRequestHeader("X-Tunesmith-Token", storedToken());
    request.upload.onprogress = ({ loaded, total }) => total && onProgress(loaded / total);
    request.onload = () => {
      const answer = parsed(request.responseText);
      if (request.status < 300) resolve(answer as Schemas["Uploaded"]);
      else reject(errorOf(answer, request.status));
    };
    request.onerror = () =>
      reject(errorOf({ error: { message: "The studio ended the upload, or does not answer." } }, 0));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    request.send(file);
  });
  return { done, stop: () => request.abort() };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
