import { kept } from "../settings";
import type { Level } from "../../parts/schema";

/** How many of the fields this browser shows. */
export const formLevel = kept<Level>("form-level", "essential");
