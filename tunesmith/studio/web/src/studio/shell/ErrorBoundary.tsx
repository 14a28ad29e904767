import { Component, type ReactNode } from "react";

import { Button } from "../../parts/Button";
import { Notice } from "../../parts/Notice";
import { View } from "./View";

/** Shows what failed in a view, so that the rest of the page goes on. */
export class ErrorBoundary extends Component<{ children: ReactNode }, { message: string }> {
  override state = { message: "" };

  static getDerivedStateFromError(error: unknown): { message: string } {
    return { message: error instanceof Error ? error.message : String(error) };
  }

  override render() {
    if (!this.state.message) return this.props.children;
    return (
      <View title="This view failed">
        <Notice tone="bad">{this.state.message}</Notice>
        <p>
          <Button onClick={() => location.reload()}>Reload the page</Button>
        </p>
      </View>
    );
  }
}
