import type { ComponentProps } from "react";

interface Props extends ComponentProps<"button"> {
  /** `main`: the one action a view is for. `danger`: what cannot be undone. `quiet`: without a border, beside text. */
  look?: "plain" | "main" | "danger" | "quiet";
  small?: boolean;
}

export function Button({ look = "plain", small = false, className = "", type = "button", ...rest }: Props) {
  const names = ["button", look !== "plain" && look, small && "small", className].filter(Boolean);
  return <button type={type} className={names.join(" ")} {...rest} />;
}
