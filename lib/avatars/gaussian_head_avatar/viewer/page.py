"""The panel of the page: what can be chosen, read as a wish. All browsers that look share one panel; each has its own camera."""

from collections.abc import Callable
from typing import Any

from lib.avatars.gaussian_head_avatar.viewer.wish import SPREADS, TURN_MOST, VIEWS, Look, Puppet, Wish

RESOLUTIONS = (128, 256, 512, 1024, 2048)
TURNS = ("nod", "turn", "tilt")
SLIDER_STEP = 0.05  # standard deviations


class Panel:
    """Sliders and buttons. The widgets hold what is chosen; `wake` is called after every change, `save` with what to save and who asked."""

    def __init__(self, server: Any, puppet: Puppet, look: Look, rate: int, wake: Callable[[], None], save: Callable[[str, Any], None]) -> None:
        """`look` and `rate` (frames a second) are what is chosen first."""
        gui, length, self._puppet = server.gui, len(puppet.driver), puppet
        gui.configure_theme(show_logo=False, show_share_button=False, control_width="medium")
        gui.main_panel.dock_right()  # else it lies on the avatar
        self._status = gui.add_markdown("starting")
        with gui.add_folder("Picture"):
            self._view = gui.add_dropdown("View", VIEWS, initial_value=look.view)
            sizes = sorted({*RESOLUTIONS, look.resolution})
            self._resolution = gui.add_dropdown("Resolution", [str(size) for size in sizes], initial_value=str(look.resolution),
                                                hint="pixels, of each avatar; more is slower")
            self._background = gui.add_rgb("Background", look.background)
        with gui.add_folder("Driver"):
            self._playing = gui.add_checkbox("Play", False, disabled=length < 2)
            self._frame = gui.add_slider("Frame", min=0, max=max(1, length - 1), step=1, initial_value=0, disabled=length < 2)
            self._rate = gui.add_slider("Frames a second", min=1, max=60, step=1, initial_value=min(rate, 60))
        with gui.add_folder("Head"):
            self._turn = [gui.add_slider(name, min=-TURN_MOST, max=TURN_MOST, step=0.5, initial_value=0.0) for name in TURNS]
        with gui.add_folder("Expression"):
            self._offsets = [
                gui.add_slider(f"{component}", min=-SPREADS, max=SPREADS, step=SLIDER_STEP, initial_value=0.0,
                               hint=f"coefficient {component}, added to the driver's; 1 is {spread:.3g}, its standard deviation there")
                for component, spread in zip(puppet.components.tolist(), puppet.spreads.tolist(), strict=True)
            ]
        reset = gui.add_button("Reset sliders")
        with gui.add_folder("Save"):
            buttons = {kind: gui.add_button(text, hint=hint) for kind, text, hint in (
                ("picture", "Picture", "as seen here, without borders, as PNG"),
                ("clip", "Clip", "all frames of the driver from here, with the sliders as they are, as mp4; press again to give it up"))}

        for handle in (self._view, self._resolution, self._background, self._playing, self._frame, self._rate, *self._turn, *self._offsets):
            handle.on_update(lambda _: wake())
        for kind, button in buttons.items():
            button.on_click(lambda event, kind=kind: save(kind, event.client))

        @reset.on_click
        def _(_: Any) -> None:
            for handle in (*self._turn, *self._offsets):
                handle.value = 0.0

    def wish(self) -> Wish:
        """What is chosen now."""
        offsets = tuple(handle.value * spread for handle, spread in zip(self._offsets, self._puppet.spreads.tolist(), strict=True))
        nod, turn, tilt = (handle.value for handle in self._turn)
        # A browser may answer what is no choice: then the first one.
        resolution = int(self._resolution.value if self._resolution.value in self._resolution.options else self._resolution.options[0])
        view = self._view.value if self._view.value in VIEWS else VIEWS[0]
        red, green, blue = (min(max(int(level), 0), 255) for level in self._background.value)
        return Wish(self._frame.value, offsets, (nod, turn, tilt), Look(view, resolution, (red, green, blue)))

    @property
    def rate(self) -> float | None:
        """Frames a second at which the driver plays; None when it stands still."""
        return float(min(max(self._rate.value, 1), 60)) if self._playing.value else None

    def tell_frame(self, frame: int) -> None:
        """Moves the slider of the driver."""
        self._frame.value = frame

    def tell(self, status: str) -> None:
        """What stands above."""
        if status != self._status.content:
            self._status.content = status
