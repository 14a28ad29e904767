export interface Store<State, Action> {
  get: () => State;
  dispatch: (action: Action) => void;
  /** Changes the state at once and shows it with the next frame, for changes that come faster than frames. */
  dispatchForFrame: (action: Action) => void;
  /** Returns the function that ends the subscription. */
  subscribe: (listener: () => void) => () => void;
}

/** A reducer whose state can also be read outside of rendering: by code that awaits, and when the page is left. */
export function createStore<State, Action>(
  reduce: (state: State, action: Action) => State,
  initial: State,
): Store<State, Action> {
  let state = initial;
  let frame = 0;
  const listeners = new Set<() => void>();

  const show = () => {
    cancelAnimationFrame(frame);
    frame = 0;
    for (const listener of listeners) listener();
  };

  return {
    get: () => state,
    dispatch(action) {
      state = reduce(state, action);
      show();
    },
    dispatchForFrame(action) {
      state = reduce(state, action);
      frame ||= requestAnimationFrame(show);
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => {
        listeners.delete(listener);
      };
    },
  };
}
