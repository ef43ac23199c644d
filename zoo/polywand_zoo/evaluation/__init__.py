"""How good a tool is: simulated clicks, boxes and extreme points on objects whose masks are known."""
