import { ModelPicker } from "../files/ModelPicker";
import { textOf } from "./values";
import type { WidgetProps } from "./widgets";

/** The base model: typed, or chosen. */
export function ModelBox({ value, onChange, attributes }: WidgetProps) {
  return (
    <ModelPicker
      value={textOf(value)}
      onChange={(path) => onChange(path === "" ? undefined : path)}
      attributes={attributes}
    />
  );
}
