import { ModelPicker } from "../files/ModelPicker";
import { textOf } from "../../parts/values";
import type { WidgetProps } from "../../parts/widgets";

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
