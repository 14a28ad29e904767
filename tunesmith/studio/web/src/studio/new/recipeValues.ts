import { createContext } from "react";

import type { Values } from "../../parts/values";

/** The recipe that the form shows. */
export const RecipeValues = createContext<Values>({});
