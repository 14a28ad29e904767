import { createContext } from "react";

import type { Values } from "./values";

/** The recipe that the form shows. */
export const RecipeValues = createContext<Values>({});
