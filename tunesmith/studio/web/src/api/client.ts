import createClient from "openapi-fetch";

import { base, errorOf, send } from "./http";
import type { components, paths } from "./schema";

/** All routes of the studio, with the types of what they take and give. */
export const client = createClient<paths>({ baseUrl: base, fetch: send });

export type Schemas = components["schemas"];
export type Machine = Schemas["Machine"];
export type Device = Schemas["Device"];
export type QueueView = Schemas["QueueView"];
export type JobView = Schemas["JobView"];
export type RunRow = Schemas["RunRow"];
export type RunView = Schemas["RunView"];
export type RunEvents = Schemas["RunEvents"];
export type Curves = Schemas["Curves"];
export type Curve = Schemas["Curve"];
export type Compared = Schemas["Compared"];
export type Deletion = Schemas["Deletion"];
export type ModelRow = Schemas["ModelRow"];
export type Download = Schemas["Download"];
export type Server = Schemas["Server"];
export type ConversationView = Schemas["ConversationView"];
export type Export = Schemas["Export"];
export type Exports = Schemas["Exports"];
export type Axis = Curves["x"];

interface Answer<Data> {
  data?: Data;
  error?: unknown;
  response: Response;
}

/** The data of an answer. Throws ApiError for an error. */
export async function data<Data>(asked: Promise<Answer<Data>>): Promise<Data> {
  const { data: found, error, response } = await asked;
  if (!response.ok) throw errorOf(error, response.status);
  return found as Data;
}
